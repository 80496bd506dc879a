"""The daemon of one hypervisor: keeps libvirt equal to what etcd asks for and Placement has granted."""
