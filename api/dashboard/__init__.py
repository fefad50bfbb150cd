"""The operator's dashboard: pages for a browser, on a listener of their own."""
