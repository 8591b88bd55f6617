"""What a run did, as one page that needs no network and no script: state, sheets, charts, figures, settings.

Start reading at `page.write_report`. It reads run folders alone, so it works while a run is under way.
"""
