"""The host that libvirt's test driver plays, for ``test:///FILE``. Imports nothing, as benchmarks weigh who uses it."""

# libvirt's own test:///default comes with a guest that takes all its memory.
TEST_HOST = """\
<node>
  <cpu><arch>x86_64</arch><mhz>2000</mhz><model>Opteron</model><active>16</active><nodes>1</nodes><sockets>1</sockets>
    <cores>16</cores><threads>1</threads></cpu>
  <memory>67108864</memory>
  <network><name>default</name><uuid>dd8fe884-6c02-601e-7551-cca97df1c5df</uuid><forward mode='nat'/><bridge name='virbr0'/>
    <ip address='192.168.122.1' netmask='255.255.255.0'><dhcp><range start='192.168.122.128' end='192.168.122.253'/></dhcp></ip>
  </network>
</node>
"""
