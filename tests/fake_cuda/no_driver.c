/* Stands in for NVIDIA's driver where there is none, as far as torch's autograd asks before it runs on fake tensors:
 * how many devices there are, and whether somebody uses one. Nothing is ever launched. */

static signed char devices = 0;

void show_devices(int number) { devices = (signed char)number; }

/* c10::cuda::device_count() */
signed char _ZN3c104cuda12device_countEv(void) { return devices; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
    (void)device;
    *flags = 0;
    *is_active = 0;
    return 0;
}
