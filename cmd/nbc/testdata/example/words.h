/* What the parts of the program know of each other. */
#ifndef WORDS_H
#define WORDS_H

#include <stdio.h>

/* A word may have this many letters; what is longer is cut off. */
#define WORD_MAX 63

struct word {
	char text[WORD_MAX + 1];
	unsigned long count;
	struct word *next; /* in the same slot of the table */
};

#endif
