/* What the parts of the plugin share: the call that it was started for, and how it ends. */
#ifndef NETLOOM_CNI_H
#define NETLOOM_CNI_H

#include <stdbool.h>
#include <stddef.h>

/* Of the CNI: https://www.cni.dev/docs/spec/#error */
enum code {
    UNKNOWN_VERSION = 1,
    BAD_ENVIRONMENT = 4,
    IO_FAILURE = 5,
    UNDECODABLE = 6,
    BAD_CONFIG = 7,
    TRY_AGAIN = 11,
    UNAVAILABLE = 50,
};

/* The CNI's variables that the agent is told; `variables` has their names. */
enum { COMMAND, CONTAINERID, NETNS, IFNAME, ARGS, PATH, VARIABLES };

struct command {
    const char *name;
    unsigned needs; /* variables, as 1 << IFNAME */
    int since;      /* version of the CNI, an index of `versions` */
};
extern const struct command ADD, DEL, STATUS;

/* The one call of this process. */
extern struct call {
    const struct command *command;
    const char *values[VARIABLES]; /* NULL where one is not set or empty */
    const char *socket, *deletions;
    const char *request; /* as it is sent and written down */
    size_t length;
} call;

/* Of the time that the call has. */
int milliseconds_left(void);

/* Whether something can be done with the file before the call's deadline; else errno says why not (ETIMEDOUT). */
bool wait_for(int file, short event);

/* Prints what the runtime gets, and ends. */
_Noreturn void end(int status, const char *output, size_t length);

/* Ends with an error object of the CNI: what is wrong, and the way out. */
__attribute__((format(printf, 3, 4))) _Noreturn void fail(enum code code, const char *way_out, const char *format, ...);

/* Ends, as the agent cannot be asked, or said nothing that helps. A deletion is written down for the agent to make up
 * for, and then is done for the runtime; all else fails: STATUS with UNAVAILABLE. */
__attribute__((format(printf, 2, 3))) _Noreturn void give_up(enum code code, const char *format, ...);

/* Hands the call to the agent, and ends with its answer (agent.c). */
_Noreturn void ask_agent(void);

#endif
