/* How late this machine wakes a process that does nothing but sleep, under SCHED_FIFO at 200 Hz: no loop is better.

       gcc -O2 benchmarks/timer_floor.c -o /tmp/timer_floor && /tmp/timer_floor

   As root, beside whatever burns the other cores in benchmarks/control_loop.py. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { TICKS = 12000, PERIOD = 5000000, SECOND = 1000000000 }; /* ns */

static int ascending(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

int main(void) {
    static long late[TICKS];
    struct sched_param priority = {.sched_priority = 60};
    if (sched_setscheduler(0, SCHED_FIFO, &priority)) perror("no SCHED_FIFO");
    if (mlockall(MCL_CURRENT | MCL_FUTURE)) perror("memory is not locked");
    struct timespec due, now;
    clock_gettime(CLOCK_MONOTONIC, &due);
    for (int i = 0; i < TICKS; i++) {
        due.tv_nsec += PERIOD;
        if (due.tv_nsec >= SECOND) {
            due.tv_nsec -= SECOND;
            due.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, 0);
        clock_gettime(CLOCK_MONOTONIC, &now);
        late[i] = (now.tv_sec - due.tv_sec) * SECOND + now.tv_nsec - due.tv_nsec;
    }
    qsort(late, TICKS, sizeof *late, ascending);
    printf("%d ticks: p50 %.3f, p99 %.3f, max %.3f ms late\n", TICKS, late[TICKS / 2] / 1e6, late[TICKS * 99 / 100] / 1e6,
           late[TICKS - 1] / 1e6);
    return 0;
}
