#define _GNU_SOURCE
#include "deletions.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int sync_directory(const char *path)
{
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return -1;
    int status = fsync(directory);
    close(directory);
    return status;
}

/* Makes it and what it lies in, so that all of it is there after a crash. The path is changed meanwhile. */
static int make_directory(char *path)
{
    char *slash = strrchr(path, '/');
    if (mkdir(path, 0700) < 0) {
        if (errno != ENOENT || !slash || slash == path)
            return errno == EEXIST ? 0 : -1;
        *slash = '\0';
        int status = make_directory(path);
        *slash = '/';
        if (status < 0 || (mkdir(path, 0700) < 0 && errno != EEXIST))
            return -1;
    }
    if (!slash)
        return sync_directory(".");
    char kept = slash[1];
    slash[1] = '\0';
    int status = sync_directory(path);
    slash[1] = kept;
    return status;
}

static int open_directory(const char *path)
{
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0 || errno != ENOENT)
        return directory;
    char missing[PATH_MAX];
    if (strlen(path) >= sizeof missing) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(missing, path);
    return make_directory(missing) < 0 ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int write_all(int file, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(file, bytes, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            errno = written ? errno : EIO;
            return -1;
        }
        bytes += written;
        length -= (size_t)written;
    }
    return 0;
}

static const char *fill(int file, const char *bytes, size_t length)
{
    const char *failed = write_all(file, bytes, length) < 0 ? "write" : fsync(file) < 0 ? "fsync" : NULL;
    int why = errno;
    if (close(file) < 0 && errno != EINTR && !failed) {
        failed = "close";
        why = errno;
    }
    errno = why;
    return failed;
}

const char *write_down(const char *path, const char *name, const char *bytes, size_t length)
{
    int directory = open_directory(path);
    if (directory < 0)
        return "open";
    /* Nobody else has this name: not a process of another PID namespace that uses the directory, nor one that was
     * killed here before the machine was started again. */
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    char unfinished[64];
    snprintf(unfinished, sizeof unfinished, ".%ld.%lld.%09ld", (long)getpid(), (long long)now.tv_sec, now.tv_nsec);
    int file = openat(directory, unfinished, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return "create";
    const char *failed = fill(file, bytes, length);
    if (!failed && renameat(directory, unfinished, directory, name) < 0)
        failed = "rename";
    if (failed) {
        int why = errno;
        unlinkat(directory, unfinished, 0);
        errno = why;
        return failed;
    }
    return fsync(directory) < 0 ? "fsync" : NULL;
}
