/* The CNI plugin on the host: hands a call of the container runtime to the node's agent, and prints what that answers.
 *
 * It configures nothing itself. What it does beside that is what the agent cannot: it enters the container's network
 * namespace, which takes CAP_SYS_ADMIN, and passes what it opened in there; and it writes down deletions while no agent
 * runs, so that no pod is stuck and no address lost. README.md describes what is sent, and which error is printed when.
 *
 * One process, one call: memory is static, and what is open is closed by the end of the process. */
#define _GNU_SOURCE
#include "netloom-cni.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "config.h"
#include "deletions.h"

#ifndef SOCKET
#define SOCKET "/run/netloom/cni.sock"
#endif
#ifndef DELETIONS
#define DELETIONS "/var/lib/netloom/deletions"
#endif
#ifndef SECONDS
#define SECONDS 30 /* for a whole call: the kubelet gives up after minutes, and then nothing would be written down */
#endif

enum {
    FIRST_LINE = 64, /* bytes, of a request: more than it can have */
    MOST_VARIABLES = 64 << 10,
    MOST_INPUT = 4 << 20,
    LONGEST_CONTAINER = 128, /* with a colon and the interface it is the name of a file */
    LONGEST_INTERFACE = 15,
};

static const char *const versions[] = {"0.3.1", "0.4.0", "1.0.0", "1.1.0"};
enum { VERSIONS = sizeof versions / sizeof *versions };

static const char *const variables[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS",
                                        "CNI_IFNAME",  "CNI_ARGS",        "CNI_PATH"};

enum { OF_CONTAINER = 1 << CONTAINERID | 1 << IFNAME };
const struct command ADD = {"ADD", OF_CONTAINER | 1 << NETNS, 0};
const struct command DEL = {"DEL", OF_CONTAINER, 0};
const struct command STATUS = {"STATUS", 0, 3};
static const struct command CHECK = {"CHECK", OF_CONTAINER | 1 << NETNS, 1};
static const struct command GC = {"GC", 0, 3};
static const struct command VERSION = {"VERSION", 0, 0};
static const struct command *const commands[] = {&ADD, &DEL, &CHECK, &GC, &STATUS, &VERSION};

struct call call = {.socket = SOCKET, .deletions = DELETIONS};

static const char *version = "1.1.0"; /* of what is printed: the request's, once it is known and one of ours */
static int64_t deadline;              /* milliseconds of CLOCK_MONOTONIC */
static bool is_unheard;               /* nobody reads standard output */

/* The request is put together here: standard input is read to its place, and the rest is written before it. */
static char room[FIRST_LINE + MOST_VARIABLES + MOST_INPUT + 1];
static char *const input = room + FIRST_LINE + MOST_VARIABLES;
static size_t input_length;

/* ------------------------------------------------------------------------------------------------ time, and the end */

static int64_t milliseconds(void)
{
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int milliseconds_left(void)
{
    int64_t left = deadline - milliseconds();
    return left > 0 ? (int)left : 0;
}

bool wait_for(int file, short event)
{
    struct pollfd asked = {.fd = file, .events = event};
    int found;
    do
        found = poll(&asked, 1, milliseconds_left());
    while (found < 0 && errno == EINTR);
    if (found == 0)
        errno = ETIMEDOUT;
    return found > 0;
}

/* One line on standard error, which runtimes log; not where nobody makes room for it. */
__attribute__((format(printf, 1, 2))) static void log_line(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (wait_for(STDERR_FILENO, POLLOUT))
        vdprintf(STDERR_FILENO, format, arguments);
    va_end(arguments);
}

void end(int status, const char *output, size_t length)
{
    while (length > 0) {
        ssize_t written = -1; /* of no more than a pipe with room takes without blocking */
        if (wait_for(STDOUT_FILENO, POLLOUT))
            written = write(STDOUT_FILENO, output, length < PIPE_BUF ? length : PIPE_BUF);
        if (written >= 0) {
            output += written;
            length -= (size_t)written;
        } else if (errno != EINTR && errno != EAGAIN) {
            /* The runtime never gets to know what was done: then the call has failed. */
            log_line("netloom-cni: the result cannot be printed: %s\n", strerror(errno));
            _exit(status ? status : 1);
        }
    }
    _exit(status);
}

/* Appends text to the string of a JSON object, as much as there is room for. */
static void quote(char *output, size_t size, const char *text)
{
    static const char unprintable[] = "\\ufffd";
    char *at = output + strlen(output), *last = output + size - sizeof unprintable;
    for (; *text && at < last; text++) {
        if (*text < ' ' || *text > '~') {
            at = stpcpy(at, unprintable);
            continue;
        }
        if (*text == '"' || *text == '\\')
            *at++ = '\\';
        *at++ = *text;
    }
    *at = '\0';
}

void fail(enum code code, const char *way_out, const char *format, ...)
{
    char message[2048], output[8192];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    sprintf(output, "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"", version, (int)code);
    quote(output, sizeof output - 2048, message);
    strcat(output, "\",\"details\":\"");
    quote(output, sizeof output - 8, way_out);
    strcat(output, "\"}\n");
    end(1, output, strlen(output));
}

void give_up(enum code code, const char *format, ...)
{
    char why[512], name[LONGEST_CONTAINER + LONGEST_INTERFACE + 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    if (call.command != &DEL)
        fail(call.command == &STATUS ? UNAVAILABLE : code,
             "See whether Netloom's agent runs on this node, and what its log says.", "%s", why);
    snprintf(name, sizeof name, "%s:%s", call.values[CONTAINERID], call.values[IFNAME]);
    const char *failed = write_down(call.deletions, name, call.request, call.length);
    if (failed)
        fail(IO_FAILURE, "It has to be repeated. Make room there, or see to it that Netloom's agent runs on this node.",
             "%s; and the deletion of %s cannot be written down in %s: %s: %s", why, name, call.deletions, failed,
             strerror(errno));
    log_line("netloom-cni: %s; the deletion of %s is written down in %s for it\n", why, name, call.deletions);
    end(0, "", 0);
}

/* ------------------------------------------------------------------------------------------- what it is called with */

/* The number of a closed one would be given to a socket, and what is printed would go to the agent. */
static void keep_standard_streams(void)
{
    struct pollfd streams[] = {{.fd = STDIN_FILENO}, {.fd = STDOUT_FILENO}, {.fd = STDERR_FILENO}};
    if (poll(streams, 3, 0) <= 0)
        return;
    is_unheard = streams[STDOUT_FILENO].revents & (POLLNVAL | POLLERR);
    for (int stream = 0; stream < 3; stream++) /* the wrong way round, so that whoever uses it is told */
        if (streams[stream].revents & POLLNVAL && open("/dev/null", stream ? O_RDONLY : O_WRONLY) != stream) {
            static const char why[] =
                "netloom-cni: a standard stream is closed, and /dev/null cannot be opened in its place\n";
            ssize_t written = write(STDERR_FILENO, why, sizeof why - 1);
            _exit(written < 0 ? 2 : 1);
        }
}

static const char *own_variable(const char *name, const char *otherwise)
{
    const char *text = secure_getenv(name);
    return text && *text ? text : otherwise;
}

static void read_environment(void)
{
    call.socket = own_variable("NETLOOM_CNI_SOCKET", call.socket);
    call.deletions = own_variable("NETLOOM_CNI_DELETIONS", call.deletions);
    int seconds = atoi(own_variable("NETLOOM_CNI_SECONDS", ""));
    deadline = milliseconds() + 1000 * (seconds > 0 && seconds < 3600 ? seconds : SECONDS);
    for (int each = 0; each < VARIABLES; each++) {
        const char *text = getenv(variables[each]);
        call.values[each] = text && *text ? text : NULL;
    }
    const char *name = call.values[COMMAND];
    if (!name)
        fail(BAD_ENVIRONMENT, "This is a CNI plugin: a container runtime calls it.", "CNI_COMMAND is not set");
    for (size_t each = 0; each < sizeof commands / sizeof *commands; each++)
        if (strcmp(name, commands[each]->name) == 0)
            call.command = commands[each];
    if (!call.command)
        fail(BAD_ENVIRONMENT, "It is one of ADD, CHECK, DEL, GC, STATUS and VERSION.",
             "CNI_COMMAND \"%.64s\" is unknown", name);
}

static void read_input(void)
{
    bool is_optional = call.command == &VERSION; /* which people ask for, too */
    if (is_optional && isatty(STDIN_FILENO))
        return;
    for (;;) {
        ssize_t count = -1;
        if (wait_for(STDIN_FILENO, POLLIN))
            count = read(STDIN_FILENO, input + input_length, MOST_INPUT + 1 - input_length);
        bool is_broken = count < 0 && errno != EINTR && errno != EAGAIN;
        if (count == 0 || (is_broken && is_optional))
            return;
        if (is_broken)
            fail(IO_FAILURE, "The runtime has to write the network configuration to it, and to close it.",
                 "standard input cannot be read to its end: %s", strerror(errno));
        input_length += count > 0 ? (size_t)count : 0;
        if (input_length > MOST_INPUT)
            fail(BAD_CONFIG, "No network configuration is that large.", "standard input has more than %d bytes",
                 (int)MOST_INPUT);
    }
}

/* What the CNI takes for the id of a container, and for the name of a network. */
static bool is_id(const char *text, size_t length)
{
    static const char letters[] = "_.-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    if (length == 0 || memchr("_.-", *text, 3))
        return false;
    while (length > 0 && memchr(letters, *text, sizeof letters - 1))
        text++, length--;
    return length == 0;
}

static bool is_interface(const char *name)
{
    if (strlen(name) > LONGEST_INTERFACE || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (; *name; name++)
        if ((unsigned char)*name <= ' ' || *name == 127 || *name == '/' || *name == ':')
            return false;
    return true;
}

static void check_environment(void)
{
    char missing[128] = "";
    for (int each = 0; each < VARIABLES; each++) {
        if (call.values[each] && strchr(call.values[each], '\n'))
            fail(BAD_ENVIRONMENT, "No variable of the CNI has more than one line.", "%s has a line break in it",
                 variables[each]);
        if (call.command->needs & 1U << each && !call.values[each])
            sprintf(missing + strlen(missing), "%s%s", *missing ? ", " : "", variables[each]);
    }
    if (*missing)
        fail(BAD_ENVIRONMENT, "The runtime has to set what the CNI demands.", "%s takes more than is set: %s",
             call.command->name, missing);
    if (!call.command->needs)
        return;
    const char *container = call.values[CONTAINERID], *interface = call.values[IFNAME];
    if (strlen(container) > LONGEST_CONTAINER || !is_id(container, strlen(container)))
        fail(BAD_ENVIRONMENT, "It has up to 128 letters, digits, _, . and -, and begins with a letter or digit.",
             "CNI_CONTAINERID \"%.160s\" is no id of a container", container);
    if (!is_interface(interface))
        fail(BAD_ENVIRONMENT, "It has up to 15 bytes, none of which is a space, / or :, and is not . or ..",
             "CNI_IFNAME \"%.64s\" is no name of an interface", interface);
}

/* The index of one of our versions; -1: it is none. */
static int find_version(struct text text)
{
    for (int each = VERSIONS - 1; each >= 0; each--)
        if (text.length == strlen(versions[each]) && memcmp(text.start, versions[each], text.length) == 0)
            return each;
    return -1;
}

static int shown(struct text text)
{
    return text.length < 64 ? (int)text.length : 64;
}

static void check_config(const struct config *config, bool is_sound, int found)
{
    if (!is_sound)
        fail(UNDECODABLE, "Mend the conflist in the runtime's folder of CNI configurations (/etc/cni/net.d).",
             "standard input is no JSON object of a network: %zu of its %zu bytes make sense", config->where,
             input_length);
    if (!config->version.length)
        fail(UNKNOWN_VERSION, "It has to be 0.3.1, 0.4.0, 1.0.0 or 1.1.0: add it to the conflist.",
             "the network configuration has no cniVersion");
    if (found < 0)
        fail(UNKNOWN_VERSION, "It has to be 0.3.1, 0.4.0, 1.0.0 or 1.1.0: mend it in the conflist.",
             "cniVersion \"%.*s\" is unknown", shown(config->version), config->version.start);
    if (found < call.command->since)
        fail(UNKNOWN_VERSION, "Mend it in the conflist.", "cniVersion %s has no %s, which takes %s", version,
             call.command->name, versions[call.command->since]);
    if (!config->name.length)
        fail(BAD_CONFIG, "Add it to the conflist.", "the network configuration has no name");
    if (!is_id(config->name.start, config->name.length))
        fail(BAD_CONFIG, "It has letters, digits, _, . and -, and begins with a letter or digit.",
             "\"%.*s\" is no name of a network", shown(config->name), config->name.start);
}

/* The agent is not asked: what is installed can be told whether it runs or not. */
_Noreturn static void tell_versions(void)
{
    char output[128];
    sprintf(output, "{\"cniVersion\":\"%s\",\"supportedVersions\":[", version);
    for (int each = 0; each < VERSIONS; each++)
        sprintf(output + strlen(output), "%s\"%s\"", each ? "," : "", versions[each]);
    strcat(output, "]}\n");
    end(0, output, strlen(output));
}

static void make_request(void)
{
    size_t size = 1;
    for (int each = 0; each < VARIABLES; each++)
        size += call.values[each] ? strlen(variables[each] + 4) + strlen(call.values[each]) + 2 : 0;
    if (size > MOST_VARIABLES)
        fail(BAD_ENVIRONMENT, "Of them, CNI_ARGS, CNI_PATH and CNI_NETNS can be long.",
             "the CNI_* variables have more than %d bytes", (int)MOST_VARIABLES);
    char first[FIRST_LINE], *at = input - size;
    size_t length = (size_t)sprintf(first, "NETLOOM-CNI/1 %zu\n", size + input_length);
    call.request = memcpy(at - length, first, length);
    call.length = length + size + input_length;
    for (int each = 0; each < VARIABLES; each++)
        if (call.values[each])
            at = stpcpy(stpcpy(stpcpy(stpcpy(at, variables[each] + 4), "="), call.values[each]), "\n");
    *at = '\n';
}

int main(void)
{
    struct config config;
    keep_standard_streams();
    signal(SIGPIPE, SIG_IGN);
    read_environment();
    read_input();
    bool is_sound = read_config(input, input_length, &config);
    int found = find_version(config.version);
    if (found >= 0)
        version = versions[found];
    if (call.command == &VERSION)
        tell_versions();
    check_environment();
    check_config(&config, is_sound, found);
    make_request();
    if (call.command == &ADD && is_unheard) /* nothing half done: who does not hear of an ADD does not use it */
        fail(IO_FAILURE, "", "nobody reads standard output");
    ask_agent();
}
