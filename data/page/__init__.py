"""An episode as a web page in one file, to look at without Deft."""
