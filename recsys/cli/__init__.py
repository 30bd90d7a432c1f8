"""The program `recsys` and the commands of the library."""
