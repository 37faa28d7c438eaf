"""The processor, the text that routines are written in, and the code that is made of it and kept."""
