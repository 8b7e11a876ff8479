"""Steps on token rows: the program that a decoder's step becomes, the arrays that it takes, and the
tokens that it gives."""
