/* A SPANK plugin with options of two kinds, for tests: some of pyxis', without its containers, and one of a site.
 * An image is a folder here, whose bin/ comes first on the PATH of a task. Ranks find all values in their environment. */
#include <limits.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SPANK_PLUGIN(lab, 1)

enum { IMAGE, WORKDIR, NO_HOME, MODE, OPTIONS };
static const char *const variables[OPTIONS] = {"LAB_IMAGE", "LAB_WORKDIR", "LAB_NO_HOME", "LAB_MODE"};
static char values[OPTIONS][PATH_MAX];

static int take(int option, const char *text, int remote) {
  (void)remote;
  snprintf(values[option], PATH_MAX, "%s", text && *text ? text : "given");
  return 0;
}

static struct spank_option options[] = {
    {"container-image", "PATH", "[lab] a folder", 1, IMAGE, take},
    {"container-workdir", "PATH", "[lab] the working directory", 1, WORKDIR, take},
    {"no-container-mount-home", NULL, "[lab] a switch", 0, NO_HOME, take},
    {"lab_mode", "MODE", "[lab] any text", 1, MODE, take},
    SPANK_OPTIONS_TABLE_END};

/* Registered here, and not by the name `spank_options`, they are sbatch's options too. */
int slurm_spank_init(spank_t spank, int argc, char **argv) {
  (void)argc, (void)argv;
  for (int i = 0; options[i].name; i++)
    if (spank_option_register(spank, &options[i]) != ESPANK_SUCCESS) return -1;
  return 0;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv) {
  (void)argc, (void)argv;
  for (int i = 0; i < OPTIONS; i++)
    if (values[i][0] && spank_setenv(spank, variables[i], values[i], 1) != ESPANK_SUCCESS) return -1;
  char path[2 * PATH_MAX + 8], rest[PATH_MAX] = "";
  spank_getenv(spank, "PATH", rest, PATH_MAX);
  snprintf(path, sizeof path, "%s/bin:%s", values[IMAGE], rest);
  if (values[IMAGE][0]) spank_setenv(spank, "PATH", path, 1);
  return values[WORKDIR][0] ? chdir(values[WORKDIR]) : 0;
}
