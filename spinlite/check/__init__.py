"""What spinlite understands of a data source, before anything is trained: `findings` sees, `screen` and `page` show."""
