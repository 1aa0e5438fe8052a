"""Results on disk, and the tables and figures made of them."""
