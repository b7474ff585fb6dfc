#include "table.h"

#include <stdlib.h>
#include <string.h>

#define SLOTS 4096

static struct word *slots[SLOTS];
static size_t size;

static unsigned slot_of(const char *text)
{
	unsigned h = 5381;

	while (*text)
		h = h * 33 + (unsigned char)*text++;
	return h % SLOTS;
}

void table_add(const char *text)
{
	struct word **slot = &slots[slot_of(text)];
	struct word *w;

	for (w = *slot; w; w = w->next) {
		if (strcmp(w->text, text) == 0) {
			w->count++;
			return;
		}
	}
	w = calloc(1, sizeof *w);
	if (!w) {
		perror("words");
		exit(1);
	}
	strcpy(w->text, text);
	w->count = 1;
	w->next = *slot;
	*slot = w;
	size++;
}

size_t table_size(void)
{
	return size;
}

void table_list(struct word **list)
{
	int i;

	for (i = 0; i < SLOTS; i++) {
		struct word *w;

		for (w = slots[i]; w; w = w->next)
			*list++ = w;
	}
}
