#include "config.h"

#include <string.h>

enum { DEEPEST = 200 };

struct scan {
    const char *at, *end;
};

static bool scan_value(struct scan *scan, unsigned depth);

static void skip_space(struct scan *scan)
{
    while (scan->at < scan->end && memchr(" \t\r\n", *scan->at, 4))
        scan->at++;
}

/* Takes this character, which may have space before it. */
static bool take(struct scan *scan, char wanted)
{
    skip_space(scan);
    if (scan->at == scan->end || *scan->at != wanted)
        return false;
    scan->at++;
    return true;
}

static bool is_digit(char character)
{
    return character >= '0' && character <= '9';
}

static bool is_hex(char character)
{
    return is_digit(character) || (character >= 'a' && character <= 'f') || (character >= 'A' && character <= 'F');
}

static bool scan_escape(struct scan *scan)
{
    if (scan->at == scan->end)
        return false;
    if (*scan->at != 'u')
        return memchr("\"\\/bfnrt", *scan->at, 8) != NULL && scan->at++;
    scan->at++;
    for (int digits = 0; digits < 4; digits++)
        if (scan->at == scan->end || !is_hex(*scan->at++))
            return false;
    return true;
}

static bool scan_string(struct scan *scan, struct text *found)
{
    if (!take(scan, '"'))
        return false;
    const char *start = scan->at;
    for (; scan->at < scan->end; scan->at++) {
        if (*scan->at == '"') {
            *found = (struct text){start, (size_t)(scan->at++ - start)};
            return true;
        }
        if ((unsigned char)*scan->at < ' ')
            return false;
        if (*scan->at == '\\') {
            scan->at++;
            if (!scan_escape(scan))
                return false;
            scan->at--;
        }
    }
    return false;
}

static bool scan_digits(struct scan *scan)
{
    const char *start = scan->at;
    while (scan->at < scan->end && is_digit(*scan->at))
        scan->at++;
    return scan->at > start;
}

static bool comes(const struct scan *scan, const char *characters)
{
    return scan->at < scan->end && memchr(characters, *scan->at, strlen(characters));
}

static bool scan_number(struct scan *scan)
{
    if (comes(scan, "-"))
        scan->at++;
    if (comes(scan, "0"))
        scan->at++;
    else if (!scan_digits(scan))
        return false;
    if (comes(scan, ".")) {
        scan->at++;
        if (!scan_digits(scan))
            return false;
    }
    if (!comes(scan, "eE"))
        return true;
    scan->at++;
    if (comes(scan, "+-"))
        scan->at++;
    return scan_digits(scan);
}

static bool scan_word(struct scan *scan, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(scan->end - scan->at) < length || memcmp(scan->at, word, length) != 0)
        return false;
    scan->at += length;
    return true;
}

static bool equals(struct text text, const char *word)
{
    return text.length == strlen(word) && memcmp(text.start, word, text.length) == 0;
}

/* A value that is a string or null. */
static bool scan_text(struct scan *scan, struct text *found)
{
    *found = (struct text){NULL, 0};
    skip_space(scan);
    return comes(scan, "n") ? scan_word(scan, "null") : scan_string(scan, found);
}

/* root: where to put what is found; NULL for an object inside another. */
static bool scan_object(struct scan *scan, unsigned depth, struct config *root)
{
    if (!take(scan, '{'))
        return false;
    if (take(scan, '}'))
        return true;
    do {
        struct text key;
        if (!scan_string(scan, &key) || !take(scan, ':'))
            return false;
        struct text *wanted = NULL;
        if (root && equals(key, "cniVersion"))
            wanted = &root->version;
        if (root && equals(key, "name"))
            wanted = &root->name;
        if (wanted ? !scan_text(scan, wanted) : !scan_value(scan, depth))
            return false;
    } while (take(scan, ','));
    return take(scan, '}');
}

static bool scan_array(struct scan *scan, unsigned depth)
{
    if (!take(scan, '['))
        return false;
    if (take(scan, ']'))
        return true;
    do
        if (!scan_value(scan, depth))
            return false;
    while (take(scan, ','));
    return take(scan, ']');
}

static bool scan_value(struct scan *scan, unsigned depth)
{
    struct text unused;
    skip_space(scan);
    if (scan->at == scan->end)
        return false;
    switch (*scan->at) {
    case '{':
        return depth < DEEPEST && scan_object(scan, depth + 1, NULL);
    case '[':
        return depth < DEEPEST && scan_array(scan, depth + 1);
    case '"':
        return scan_string(scan, &unused);
    case 't':
        return scan_word(scan, "true");
    case 'f':
        return scan_word(scan, "false");
    case 'n':
        return scan_word(scan, "null");
    default:
        return scan_number(scan);
    }
}

bool read_config(const char *text, size_t length, struct config *found)
{
    struct scan scan = {text, text + length};
    *found = (struct config){0};
    bool is_object = scan_object(&scan, 1, found);
    if (is_object)
        skip_space(&scan);
    found->where = (size_t)(scan.at - text);
    return is_object && scan.at == scan.end;
}
