"""The website: figures, formulas, pages and the shell around them."""
