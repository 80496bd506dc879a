"""The metadata service of one hypervisor: answers its guests at 169.254.169.254."""
