// The tour in English.
import type { Tour } from ".";

export const en = {
  steps: {
    launch: {
      title: "Launch your first container",
      why: "A container is a complete Linux system: with files, users, processes and a network of its own. `utsuwa launch` makes one from an image, and starts it. The image `busybox` is on this machine already; it is a very small system.",
      look: "It takes a fraction of a second until `first` is `RUNNING`. The list shows the state, the addresses and the number of snapshots of each container.",
    },
    exec: {
      title: "Run commands in it",
      why: "`utsuwa exec` runs a command in a container: everything after `--`. The first one here lists the processes, the second one writes a file, which later steps need, and the third one reads it.",
      look: "There are few processes, and they begin with number 1: from inside, there is nothing else on this machine. In the same way, `/root/note` is a file of the container: `cat /root/note` alone finds nothing.",
    },
    limits: {
      title: "Set limits",
      why: "`utsuwa config set` changes the configuration of a container. A memory limit takes effect at once, without a restart. There are others for processors, processes, disks and networks.",
      look: "`-c` chooses the columns: name, state, the memory in use, and the limit. If processes in the container want more than there is, the kernel ends one of them; everything else on the machine goes on.",
    },
    snapshot: {
      title: "Take a snapshot",
      why: "A snapshot keeps a container as it is now, with its files, its configuration and its devices. That takes no longer for a big container than for a small one, as no files are copied. This one is called `before`.",
      look: "The last column of the list counts the snapshots.",
    },
    restore: {
      title: "Undo a mistake",
      why: "Delete the file, as if by mistake, and return to the snapshot: `utsuwa restore` brings back files and configuration.",
      look: "The last command shows that `/root/note` is there again. The container was running, so it was stopped for this, and started again.",
    },
    profile: {
      title: "Share settings in a profile",
      why: "A profile holds settings and devices for any number of containers. `default` gives each of them its disk. Make another one, `small`, which limits the number of processes, and add it to the container.",
      look: "The column `PROFILES` shows both, in the order in which they apply. When you change a profile, all containers that use it change with it, running ones too.",
    },
    images: {
      title: "Make an image of your own",
      why: "`utsuwa publish` makes an image of a container or, as here, of a snapshot. From an image you launch as many containers as you like.",
      look: "`mine` is now in the list beside `busybox`, and `second` has the file from the beginning: `utsuwa exec second -- cat /root/note`.",
    },
    copy: {
      title: "Copy a container",
      why: "`utsuwa copy` makes another container with the same files, settings and snapshots. The same command copies to other servers, and `utsuwa move` moves a container there.",
      look: "`twin` has a snapshot, too. It shares with `first` all files that neither of them changes, so copies take little time and space.",
    },
    docker: {
      title: "Run Docker inside",
      why: "A container can run containers of its own. The image `docker` is a Debian with Docker, and the profile `docker` allows what that needs; the container has no rights on this machine all the same. There is no network here, so `docker load` takes an image from a file.",
      look: "The first command of Docker waits some seconds until that has started. `docker ps` shows the container that said hello: three levels deep, as your machine is a container as well. `utsuwa delete --force box` removes all of it.",
    },
  },
  hints: {
    "no-instance": "There is no container yet: `utsuwa launch busybox first` launches one.",
    "not-running": "The container `{name}` is not running: `utsuwa start {name}` starts it.",
    "no-exec": "Nothing has been run in a container yet.",
    "no-limit": "No container has a limit yet.",
    "no-snapshot": "There is no snapshot yet: `utsuwa snapshot first before` takes one.",
    "no-restore": "No container has been restored from its snapshot yet.",
    "no-profile": "There is no profile of your own yet.",
    "profile-unused": "The profile `{name}` is there, and no container uses it yet.",
    "no-image": "There is no image of your own yet.",
    "no-copy": "There is no copy of a container yet.",
    "no-docker": "No container with the profile `docker` is running yet.",
    "no-docker-run": "`{name}` is running, and Docker has not run a container in it yet.",
  },
  otherHint: "Not done yet. Run the commands above, and look at what they say.",
} satisfies Tour;
