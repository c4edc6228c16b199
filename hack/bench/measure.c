/*
 * Runs a command once and prints what it cost:
 *
 *   measure SECONDS ERRORS PROGRAM [ARGUMENT...]
 *
 * "wall_ns cpu_us maxrss_kib minor_faults switches status", where cpu is user and system time of the program and
 * of those children it has waited for, and status 128+signal for a killed one (137 where SECONDS were over).
 * Standard input and output of the program are /dev/null, its errors are appended to the file ERRORS.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t pid;

static void too_long(int signal) {
    (void)signal;
    kill(pid, SIGKILL);
}

static long long microseconds(struct timeval t) { return t.tv_sec * 1000000LL + t.tv_usec; }

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int errors = open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (null < 0 || errors < 0) return 2;
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    pid = vfork();
    if (pid == 0) {
        dup2(null, 0);
        dup2(null, 1);
        dup2(errors, 2);
        execv(argv[3], argv + 3);
        _exit(127);
    }
    signal(SIGALRM, too_long);
    alarm(atoi(argv[1]));
    int status;
    struct rusage used;
    while (wait4(pid, &status, 0, &used) < 0) {}
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%lld %lld %ld %ld %ld %d\n", (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec,
           microseconds(used.ru_utime) + microseconds(used.ru_stime), used.ru_maxrss, used.ru_minflt,
           used.ru_nvcsw + used.ru_nivcsw, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}
