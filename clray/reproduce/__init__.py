"""Published tables: a sweep that trains what a paper trained, the paper's numbers beside it, and how far ours are from them."""
