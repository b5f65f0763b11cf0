/*
 * What the host's side may do to the controller: give it rules to misbehave by (faults.c), or cut its power (cache.c).
 */
#include <errno.h>

#include "controller.h"

static void replace_faults(struct controller *c, void *argument)
{
    faults_replace(c, argument);
}

int controller_set_faults(struct controller *c, const struct fault_plan *plan)
{
    struct faults *fresh = faults_new(plan);
    if (!fresh)
        return -ENOMEM;
    pthread_mutex_lock(&c->lock);
    c->cap_mask = plan->cap_mask;
    c->cap_value = plan->cap_value;
    pthread_mutex_unlock(&c->lock);
    pthread_mutex_lock(&c->host_lock);
    engine_call(c, replace_faults, fresh);
    pthread_mutex_unlock(&c->host_lock);
    return 0;
}

struct power_cut {
    uint64_t seed;
    int error;
};

static void cut_power(struct controller *c, void *argument)
{
    struct power_cut *request = argument;
    faults_vanish(c);
    request->error = c->backend.cache ? cache_power_cut(c->backend.cache, c->backend.fd, request->seed) : 0;
}

int controller_power_cut(struct controller *c, uint64_t seed)
{
    struct power_cut request = {.seed = seed};
    pthread_mutex_lock(&c->host_lock);
    engine_call(c, cut_power, &request);
    pthread_mutex_unlock(&c->host_lock);
    return request.error;
}
