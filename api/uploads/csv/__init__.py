"""The CSV of an upload: dialect, header, URLs, rows."""
