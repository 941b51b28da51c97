"""Images from definitions: packages are downloaded and verified here, and installed in a container.

definition  what the YAML says
archive     where packages come from
packages    download of the packages, as an archive of their own
kit         all that the installation needs, in one directory
install.sh  the installation, which runs inside the container
container   a container without a network, which installs
scratch     temporary directories, which are removed in any case
"""
