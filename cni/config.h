/* The network configuration that a runtime gives on standard input: whether it is JSON, and the two fields that matter
 * before anybody is asked. All else is the agent's to read. */
#ifndef NETLOOM_CONFIG_H
#define NETLOOM_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

/* A string as it stands in the text, escapes and all; `start` is NULL where there is none. */
struct text {
    const char *start;
    size_t length;
};

struct config {
    struct text version; /* cniVersion */
    struct text name;
    size_t where; /* of what is wrong: so many bytes are sound */
};

/* Whether the text is one JSON object (RFC 8259), and what is in it; of a key that comes twice the last counts. Also
 * refused is what is nested more than 200 deep, and a cniVersion or name that is neither string nor null. Inside
 * strings, bytes above 127 pass as they are. */
bool read_config(const char *text, size_t length, struct config *found);

#endif
