/* Printing words. */
#ifndef PRINT_H
#define PRINT_H

#include "words.h"

/* Prints the first words of a list, one on each line, behind their counts. */
void print_words(struct word **list, size_t n);

#endif
