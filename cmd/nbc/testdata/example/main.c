#include "order.h"
#include "print.h"
#include "read.h"
#include "table.h"

#include <stdlib.h>

int main(void)
{
	char text[WORD_MAX + 1];
	struct word **list;

	while (read_word(stdin, text))
		table_add(text);
	list = calloc(table_size() + 1, sizeof *list);
	if (!list) {
		perror("words");
		return 1;
	}
	table_list(list);
	order(list, table_size());
	print_words(list, table_size());
	free(list);
	return 0;
}
