"""The paper's comparison: every method and repeat, tables, and the page that shows them."""
