#include "order.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
	const struct word *v = *(struct word *const *)a;
	const struct word *w = *(struct word *const *)b;

	if (v->count != w->count)
		return v->count < w->count ? 1 : -1;
	return strcmp(v->text, w->text);
}

void order(struct word **list, size_t n)
{
	qsort(list, n, sizeof *list, compare);
}
