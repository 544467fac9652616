"""The console's pages, one module for each area; each lists its `ROUTES`."""
