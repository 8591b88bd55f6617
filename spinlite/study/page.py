def write_page(page, out, table): pass
