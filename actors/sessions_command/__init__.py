"""`ropewalk sessions`: looking at a journal's sessions from the command line, and looking after them."""
