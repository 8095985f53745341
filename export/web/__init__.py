"""A page that classifies photos in the browser, as a folder of files for any web server."""
