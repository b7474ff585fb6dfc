/* Putting words in order. */
#ifndef ORDER_H
#define ORDER_H

#include "words.h"

/* Sorts by how often a word was seen, the most frequent first, then by the alphabet. */
void order(struct word **list, size_t n);

#endif
