/* Reading words. */
#ifndef READ_H
#define READ_H

#include "words.h"

/* Reads the next word in lower case; returns 0 at the end of the input. */
int read_word(FILE *in, char text[WORD_MAX + 1]);

#endif
