/* The conversation with the agent: what is opened in the container's network namespace, the request, the answer. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "config.h"
#include "netloom-cni.h"

#define PROTOCOL "NETLOOM-CNI/1 "
enum {
    FIRST_LINE = 64, /* bytes, of an answer: more than it can have */
    MOST_ANSWER = 4 << 20,
    MOST_FILES = 3,
    ROUTE = 0, /* NETLINK_ROUTE of linux/netlink.h, which musl does not bring */
};

/* Fails at once where nobody listens, and waits where so many callers are before it that the kernel's queue is full. */
static int connect_agent(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(call.socket) >= sizeof address.sun_path)
        fail(BAD_ENVIRONMENT, "Name a shorter path.", "NETLOOM_CNI_SOCKET has more than %zu bytes",
             sizeof address.sun_path - 1);
    strcpy(address.sun_path, call.socket);
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (agent < 0)
        give_up(IO_FAILURE, "no socket can be made: %s", strerror(errno));
    do {
        int left = milliseconds_left() + 1; /* 0 would be for ever */
        struct timeval patience = {.tv_sec = left / 1000, .tv_usec = left % 1000 * 1000};
        setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (connect(agent, (struct sockaddr *)&address, sizeof address) == 0)
            return agent;
    } while (errno == EINTR);
    /* Who may not connect is another user, which no other moment changes. */
    give_up(errno == EACCES || errno == EPERM ? IO_FAILURE : TRY_AGAIN, "Netloom's agent cannot be reached at %s: %s",
            call.socket, strerror(errno == EAGAIN ? ETIMEDOUT : errno));
}

static bool is_own_namespace(const struct stat *there)
{
    struct stat own;
    return stat("/proc/self/ns/net", &own) == 0 && there->st_ino == own.st_ino && there->st_dev == own.st_dev;
}

static bool is_overridden(void)
{
    const char *text = getenv("CNI_NETNS_OVERRIDE");
    return text && (strcmp(text, "1") == 0 || strcasecmp(text, "true") == 0);
}

/* One thing in a namespace addresses depend on, and rtnetlink cannot change: IPv6 that is switched off for devices to
 * come. Then the agent is given what switches it on, and decides. -1: it is on, or there is no IPv6 at all. */
static int open_ipv6_switch(void)
{
    char is_off = '0';
    int file = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    ssize_t count = read(file, &is_off, 1);
    close(file);
    if (count != 1 || is_off == '0')
        return -1;
    return open("/proc/sys/net/ipv6/conf/all/disable_ipv6", O_WRONLY | O_CLOEXEC);
}

/* Enters the container's network namespace, for good, and opens there what the agent needs; how many files those are.
 * A deletion goes on without, where the namespace is gone. */
static int enter(int files[MOST_FILES])
{
    const char *path = call.values[NETNS];
    struct stat there;
    if (!path)
        return 0;
    files[0] = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* of a FIFO, somebody may have put one there */
    if (files[0] >= 0 && fstat(files[0], &there) == 0 && is_own_namespace(&there) && !is_overridden()) {
        if (call.command == &DEL)
            return 0;
        fail(BAD_ENVIRONMENT, "A container has one of its own.",
             "CNI_NETNS \"%.160s\" is the network namespace that the plugin was called in", path);
    }
    if (files[0] < 0 || setns(files[0], CLONE_NEWNET) < 0) {
        if (call.command == &DEL)
            return 0;
        if (errno == EPERM || errno == EACCES)
            fail(IO_FAILURE, "The runtime has to call the plugin as root, with CAP_SYS_ADMIN.",
                 "CNI_NETNS \"%.160s\" cannot be entered: %s", path, strerror(errno));
        fail(BAD_ENVIRONMENT, "The container has ended, or has not begun.",
             "CNI_NETNS \"%.160s\" is no network namespace: %s", path, strerror(errno));
    }
    files[1] = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, ROUTE);
    if (files[1] < 0)
        give_up(IO_FAILURE, "no rtnetlink socket can be made in CNI_NETNS \"%.160s\": %s", path, strerror(errno));
    files[2] = call.command == &ADD ? open_ipv6_switch() : -1;
    return files[2] < 0 ? 2 : 3;
}

/* The files go along with the first bytes. Whom the agent hangs up on may have been told why: it reads on. */
static void send_request(int agent, const int *files, int count)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(MOST_FILES * sizeof(int))];
    } control = {.room = {0}};
    size_t size = (size_t)count * sizeof(int), sent = 0;
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = (socklen_t)CMSG_LEN(size);
    memcpy(CMSG_DATA(&control.header), files, size);
    while (sent < call.length) {
        struct iovec piece = {(void *)(uintptr_t)(call.request + sent), call.length - sent};
        struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
        if (count > 0 && sent == 0) {
            message.msg_control = &control;
            message.msg_controllen = (socklen_t)CMSG_SPACE(size);
        }
        ssize_t done = sendmsg(agent, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done >= 0)
            sent += (size_t)done;
        else if (errno == EPIPE || errno == ECONNRESET)
            return;
        else if (errno != EINTR && !(errno == EAGAIN && wait_for(agent, POLLOUT)))
            give_up(errno == ETIMEDOUT ? TRY_AGAIN : IO_FAILURE, "Netloom's agent at %s does not take the call: %s",
                    call.socket, strerror(errno));
    }
}

struct answer {
    int status;
    size_t start, length; /* of what is to be printed; SIZE_MAX until the first line is there */
};

/* A decimal number; -1: there is none, or a larger one. */
static int read_number(const char **at, int most)
{
    const char *start = *at;
    int number = 0;
    for (; **at >= '0' && **at <= '9' && number <= most; ++*at)
        number = number * 10 + (**at - '0');
    return *at > start && number <= most ? number : -1;
}

/* Whether these bytes can be the beginning of an answer. */
static bool read_first_line(const char *bytes, size_t count, struct answer *found)
{
    const size_t least = sizeof PROTOCOL - 1;
    const char *line_end = memchr(bytes, '\n', count < FIRST_LINE ? count : FIRST_LINE), *at = bytes + least;
    if (memcmp(bytes, PROTOCOL, count < least ? count : least) != 0)
        return false;
    if (!line_end)
        return count < FIRST_LINE;
    int status = read_number(&at, 255), length = *at++ == ' ' ? read_number(&at, MOST_ANSWER) : -1;
    *found = (struct answer){status, (size_t)(line_end - bytes) + 1, (size_t)length};
    return status >= 0 && length >= 0 && at == line_end;
}

/* Whether that is what the CNI lets a plugin print. */
static bool makes_sense(const char *output, struct answer answer)
{
    struct config unused;
    if (answer.length == 0)
        return answer.status == 0 && call.command != &ADD;
    return read_config(output, answer.length, &unused);
}

_Noreturn static void print_answer(int agent)
{
    static char bytes[FIRST_LINE + MOST_ANSWER];
    struct answer found = {0, 0, SIZE_MAX};
    size_t count = 0;
    while (found.length == SIZE_MAX || count < found.start + found.length) {
        ssize_t come = -1;
        if (wait_for(agent, POLLIN))
            come = recv(agent, bytes + count, sizeof bytes - count, MSG_DONTWAIT);
        if (come < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (come < 0)
            give_up(TRY_AGAIN, "Netloom's agent at %s gives no answer: %s", call.socket, strerror(errno));
        if (come == 0)
            give_up(TRY_AGAIN, "Netloom's agent at %s hung up after %zu bytes of an answer", call.socket, count);
        count += (size_t)come;
        if (!read_first_line(bytes, count, &found))
            give_up(IO_FAILURE, "what listens at %s answers nonsense: \"%.*s\"", call.socket,
                    (int)(count < FIRST_LINE ? count : FIRST_LINE), bytes);
    }
    if (!makes_sense(bytes + found.start, found))
        give_up(IO_FAILURE, "what listens at %s answers nonsense: status %d with \"%.*s\"", call.socket, found.status,
                (int)(found.length < FIRST_LINE ? found.length : FIRST_LINE), bytes + found.start);
    end(found.status, bytes + found.start, found.length);
}

void ask_agent(void)
{
    int files[MOST_FILES] = {-1, -1, -1};
    int agent = connect_agent();
    send_request(agent, files, enter(files));
    print_answer(agent);
}
