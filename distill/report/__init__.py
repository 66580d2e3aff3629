"""Pages, tables and pictures of finished work; nothing here trains."""
