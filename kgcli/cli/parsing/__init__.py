"""Reading of arguments and help of all commands."""
