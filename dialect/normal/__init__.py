"""The normal form: rules that bring the spellings of all libraries to one."""
