/*
 * The oracle of the seccomp tests: compiles profiles with libseccomp, the way runc does.
 *
 * stdin, one profile after the other, all numbers in decimal:
 *   D ACTION                              default action
 *   A TOKEN                               another architecture (SCMP_ARCH_*)
 *   R ACTION NAME N {ARG OP VALUE VALUE2}*N    a rule with N conditions
 *   E                                     end: answer
 * stdout, for each profile, native 32-bit words:
 *   error (0, or -errno), index of the rule that failed,
 *   the greatest number named on x86_64, x32, x86 (0: none),
 *   n, then n times: a number that a rule names (x32's with bit 30), its architecture (0 to 2 as above), the
 *     index of the rule, the first argument if this is socketcall(2) or ipc(2) standing for the call (else 0),
 *   m, then m instructions of 8 bytes.
 * With the argument "kernel" it reads a filter (a word that counts the instructions, then these) and calls (a word
 * that counts them, then for each number and six arguments of 64 bits), and makes each call under the filter in a
 * child of its own. For each call it writes two words: the signal that killed the child, or 0; the errno, or 0.
 * With the argument "names" it prints the names of all calls of x86_64, x32 and x86 that libseccomp knows.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NUMBERS 1024
#define X32_BIT 0x40000000u
#define MAX_TOUCHED 8192

static const uint32_t TOKENS[3] = {SCMP_ARCH_X86_64, SCMP_ARCH_X32, SCMP_ARCH_X86};
static char *names[3][NUMBERS];
static uint32_t greatest[3], touched_count;
static struct touched {
	uint32_t number, arch, rule, first;
} touched[MAX_TOUCHED];

static void load_names(void)
{
	for (int arch = 0; arch < 3; arch++)
		for (uint32_t number = 0; number < NUMBERS; number++)
			names[arch][number] =
				seccomp_syscall_resolve_num_arch(TOKENS[arch], number | (arch == 1 ? X32_BIT : 0));
}

static void touch(uint32_t arch, uint32_t number, uint32_t rule, uint32_t first)
{
	if (number > greatest[arch])
		greatest[arch] = number;
	if (touched_count < MAX_TOUCHED)
		touched[touched_count++] = (struct touched){number, arch, rule, first};
}

/* Remembers every number by which `name` can be called. */
static void touch_name(const char *name, uint32_t rule)
{
	for (uint32_t arch = 0; arch < 3; arch++)
		for (uint32_t number = 0; number < NUMBERS; number++)
			if (names[arch][number] && !strcmp(names[arch][number], name))
				touch(arch, number | (arch == 1 ? X32_BIT : 0), rule, 0);
	int pseudo = seccomp_syscall_resolve_name_arch(SCMP_ARCH_X86, name);
	if (pseudo <= -100 && pseudo >= -120)
		touch(2, 102, rule, -pseudo - 100);
	if (pseudo <= -200 && pseudo >= -224)
		touch(2, 117, rule, -pseudo - 200);
}

static int add_rule(scmp_filter_ctx filter, uint32_t action, const char *name, unsigned count,
		    const struct scmp_arg_cmp *conditions)
{
	int number = seccomp_syscall_resolve_name(name);
	int seen[6] = {0}, twice = 0, error = 0;

	if (number == __NR_SCMP_ERROR)
		return 0;
	for (unsigned i = 0; i < count; i++)
		twice |= seen[conditions[i].arg]++;
	if (!twice)
		return seccomp_rule_add_array(filter, action, number, count, conditions);
	for (unsigned i = 0; i < count && !error; i++)
		error = seccomp_rule_add_array(filter, action, number, 1, &conditions[i]);
	return error;
}

static int read_rule(scmp_filter_ctx filter, uint32_t fallback, uint32_t rule)
{
	struct scmp_arg_cmp conditions[16];
	char name[128];
	uint32_t action;
	unsigned count;

	if (scanf("%u %127s %u", &action, name, &count) != 3 || count > 16)
		exit(2);
	for (unsigned i = 0; i < count; i++) {
		unsigned arg, op;
		unsigned long long value, value2;
		if (scanf("%u %u %llu %llu", &arg, &op, &value, &value2) != 4)
			exit(2);
		conditions[i] = (struct scmp_arg_cmp){arg, op, value, value2};
	}
	touch_name(name, rule);
	if (action == fallback)
		return 0;
	return add_rule(filter, action, name, count, conditions);
}

static void word(uint32_t value)
{
	fwrite(&value, sizeof(value), 1, stdout);
}

static void answer(scmp_filter_ctx filter, int error, uint32_t failed, uint32_t rules)
{
	static char program[8 * 65536];
	FILE *file = tmpfile();
	size_t size = 0;

	/*
	 * A binary tree, not only over 32 rules as runc does: the list of libseccomp 2.5.4 does not load the number
	 * where the first call of the list does not exist on the architecture. (Its empty tree goes wrong.)
	 */
	if (rules > 0)
		seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!error)
		error = seccomp_export_bpf(filter, fileno(file));
	if (!error) {
		lseek(fileno(file), 0, SEEK_SET);
		ssize_t got;
		while ((got = read(fileno(file), program + size, sizeof(program) - size)) > 0)
			size += got;
	}
	fclose(file);
	word(error);
	word(failed);
	for (int arch = 0; arch < 3; arch++)
		word(greatest[arch]);
	word(touched_count);
	fwrite(touched, sizeof(touched[0]), touched_count, stdout);
	word(size / 8);
	fwrite(program, 1, size, stdout);
	fflush(stdout);
}

static void print_names(void)
{
	for (int arch = 0; arch < 3; arch++)
		for (uint32_t number = 0; number < NUMBERS; number++)
			if (names[arch][number])
				puts(names[arch][number]);
}

static void fetch(void *to, size_t size)
{
	if (fread(to, 1, size, stdin) != size)
		exit(2);
}

static void under_filter(const struct sock_fprog *filter, const uint64_t *call, volatile uint32_t *error)
{
	/* no call finds its descriptor open */
	if (syscall(SYS_close_range, 0, ~0u, 0) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, filter)) {
		*error = 1000 + errno;
		_exit(0);
	}
	long result = syscall(call[0], call[1], call[2], call[3], call[4], call[5], call[6]);
	*error = result == -1 ? errno : 0;
	_exit(0);
}

static int kernel(void)
{
	static struct sock_filter program[4096];
	volatile uint32_t *error = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct sock_fprog filter = {.filter = program};
	struct rlimit no_core = {0, 0};
	uint32_t count;
	uint64_t call[7];

	setrlimit(RLIMIT_CORE, &no_core);
	fetch(&count, sizeof(count));
	if (count > 4096)
		return 2;
	fetch(program, count * sizeof(program[0]));
	filter.len = count;
	fetch(&count, sizeof(count));
	while (count--) {
		int status;
		fetch(call, sizeof(call));
		*error = 0;
		pid_t child = fork();
		if (child == 0)
			under_filter(&filter, call, error);
		if (child < 0 || waitpid(child, &status, 0) != child)
			return 2;
		word(WIFSIGNALED(status) ? WTERMSIG(status) : 0);
		word(*error);
	}
	return 0;
}

int main(int argc, char **argv)
{
	scmp_filter_ctx filter = NULL;
	uint32_t fallback = 0, rules = 0, failed = 0, token;
	int error = 0;
	char kind;

	if (argc > 1 && !strcmp(argv[1], "kernel"))
		return kernel();
	load_names();
	if (argc > 1 && !strcmp(argv[1], "names")) {
		print_names();
		return 0;
	}
	while (scanf(" %c", &kind) == 1) {
		switch (kind) {
		case 'D':
			if (scanf("%u", &fallback) != 1)
				return 2;
			/* some profiles make libseccomp 2.5.4 run forever */
			alarm(3);
			filter = seccomp_init(fallback);
			error = rules = failed = touched_count = 0;
			memset(greatest, 0, sizeof(greatest));
			break;
		case 'A':
			if (scanf("%u", &token) != 1)
				return 2;
			seccomp_arch_add(filter, token);
			break;
		case 'R': {
			int result = read_rule(filter, fallback, rules);
			if (result && !error) {
				error = result;
				failed = rules;
			}
			rules++;
			break;
		}
		case 'E':
			answer(filter, error, failed, rules);
			seccomp_release(filter);
			break;
		default:
			return 2;
		}
	}
	return 0;
}
