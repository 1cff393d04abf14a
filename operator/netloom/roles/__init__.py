"""The roles of the program: what is started, in which order, and who watches over whom."""
