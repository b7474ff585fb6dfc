#include "read.h"

#include <ctype.h>

int read_word(FILE *in, char text[WORD_MAX + 1])
{
	int c, n = 0;

	while ((c = getc(in)) != EOF && !isalpha(c))
		;
	for (; c != EOF && isalpha(c); c = getc(in))
		if (n < WORD_MAX)
			text[n++] = (char)tolower(c);
	text[n] = 0;
	return n > 0;
}
