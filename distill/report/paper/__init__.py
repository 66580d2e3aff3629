"""The paper's figures and tables from a law alone: `python -m launch.figures --law=paper --out=DIR`."""
