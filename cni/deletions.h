/* What could not be told to the agent, for it to make up for later. */
#ifndef NETLOOM_DELETIONS_H
#define NETLOOM_DELETIONS_H

#include <stddef.h>

/* Writes a file of that name, whole and durably, in place of one that is there; the directory is made where it is
 * missing. Of two that write the same name at once both succeed, and one of their files stays. Returns NULL, or what
 * could not be done, with errno: then nothing is left, or (fsync of the directory) a file that may not last. */
const char *write_down(const char *directory, const char *name, const char *bytes, size_t length);

#endif
