"""The paper's figures and tables from a law alone: `python -m launch.figures --law=paper --out=DIR`.

curves (optima for the line figures), style, scene (what is drawn), then one module a family of figures: protocols,
surfaces, optima, kernel, mapping; tables; gallery (the list, and the page that shows them).
"""

ORDER = ("curves", "style", "scene", "protocols", "surfaces", "optima", "kernel", "mapping", "tables", "gallery")
