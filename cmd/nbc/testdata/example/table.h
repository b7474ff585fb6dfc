/* A table of words and how often each was seen. */
#ifndef TABLE_H
#define TABLE_H

#include "words.h"

/* Counts a word once more. */
void table_add(const char *text);

/* Returns the number of different words. */
size_t table_size(void);

/* Puts all of them into list, which has room for table_size of them, in no order. */
void table_list(struct word **list);

#endif
