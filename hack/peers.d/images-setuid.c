/* A set-user-ID program: says as whom it runs, by which no_new_privs is seen. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    printf("Effective uid: %d\n", (int)geteuid());
    return 0;
}
