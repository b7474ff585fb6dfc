#include "print.h"

#define MOST 10

void print_words(struct word **list, size_t n)
{
	size_t i;

	for (i = 0; i < n && i < MOST; i++)
		printf("%7lu %s\n", list[i]->count, list[i]->text);
}
