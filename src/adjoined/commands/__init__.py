"""One file per command of the command line: an options class and `main(argv)`.

To add a command, write its file here and add its line to the table in `adjoined.cli`.
"""
