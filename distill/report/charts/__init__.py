"""Charts: one description of a chart, drawn as PNG and SVG for papers, as CSV, and in a page that people explore."""
