"""What a program is made of: norms, softmaxes, masks, attention; and what was not recognised."""
