# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_nightlight_global_optspecs
    string join \n h/help V/version
end

function __fish_nightlight_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_nightlight_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_nightlight_using_subcommand
    set -l cmd (__fish_nightlight_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c nightlight -n "__fish_nightlight_needs_command" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_needs_command" -s V -l version -d 'Print version'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "run" -d 'Run the daemon until it is told to stop (SIGTERM, SIGINT)'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "demo" -d 'Show the daemon at work with a simulated sensor and LED'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "drill" -d 'Cut the running service\'s way to the broker for a while, watch it, and count what arrives'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "check" -d 'Check the configuration and say what the daemon would do with it'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "status" -d 'Show what the running daemon sees and does, and why the LED is as it is'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "backlog" -d 'Look into the backlog of a daemon that does not run'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "doctor" -d 'Look at this machine: sensor, LED, broker, clock, disk, service, and what to do about each'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "sensor" -d 'Read the configured sensor'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "led" -d 'Switch the configured LED by hand'
complete -c nightlight -n "__fish_nightlight_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight -n "__fish_nightlight_using_subcommand run" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand run" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand demo" -l broker -d 'Broker to use, such as mqtt://localhost:1883' -r
complete -c nightlight -n "__fish_nightlight_using_subcommand demo" -l trace -d 'Recording of light to play in place of the simulated day' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand demo" -l scenario -d 'One scenario in place of the story' -r -f -a "cable\t'The cable is pulled, it gets dark, the cable is back'
power\t'The power is cut in an outage, and again in the middle of the replay'
server\t'The server is killed while the broker lives, then the broker'
stale-commands\t'Commands that are late, repeated or kept come all at once'
full\t'The backlog is full, and what is given up is told'
storm\t'A flood of commands, a link that flaps, the broker killed, the power cut'
all\t'Each of these, one after the other'
hands-on\t'No story: cause what you like, by the page or by keys'"
complete -c nightlight -n "__fish_nightlight_using_subcommand demo" -l report -d 'Write plot, events and account of the run into this file, which needs no other' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand demo" -l agent -d 'Be the device of a demonstration whose files are in this folder; `demo` starts itself so' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nightlight -n "__fish_nightlight_using_subcommand drill" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand drill" -l seconds -d 'The way is cut for at least so many seconds' -r
complete -c nightlight -n "__fish_nightlight_using_subcommand drill" -l report -d 'What the machine is, what happened when, and the account; without names, addresses and secrets' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand drill" -l kill -d 'Kill the service (SIGKILL) in the middle'
complete -c nightlight -n "__fish_nightlight_using_subcommand drill" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand check" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand check" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand status" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand status" -l json -d 'As one JSON object'
complete -c nightlight -n "__fish_nightlight_using_subcommand status" -s w -l watch -d 'Again and again, every second, until Ctrl-C; with --json a line each'
complete -c nightlight -n "__fish_nightlight_using_subcommand status" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and not __fish_seen_subcommand_from stats list export verify help" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and not __fish_seen_subcommand_from stats list export verify help" -f -a "stats" -d 'How much is in it, and of which runs'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and not __fish_seen_subcommand_from stats list export verify help" -f -a "list" -d 'Its chunks and single records: run, first seq, last seq, count'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and not __fish_seen_subcommand_from stats list export verify help" -f -a "export" -d 'Each record as a line of JSON, as it would be replayed, oldest first'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and not __fish_seen_subcommand_from stats list export verify help" -f -a "verify" -d 'Read everything and compare it with the store\'s own account'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and not __fish_seen_subcommand_from stats list export verify help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from stats" -l path -d 'The folder that backlog.path names' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from stats" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from list" -l path -d 'The folder that backlog.path names' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from export" -l path -d 'The folder that backlog.path names' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from verify" -l path -d 'The folder that backlog.path names' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from help" -f -a "stats" -d 'How much is in it, and of which runs'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from help" -f -a "list" -d 'Its chunks and single records: run, first seq, last seq, count'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from help" -f -a "export" -d 'Each record as a line of JSON, as it would be replayed, oldest first'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from help" -f -a "verify" -d 'Read everything and compare it with the store\'s own account'
complete -c nightlight -n "__fish_nightlight_using_subcommand backlog; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight -n "__fish_nightlight_using_subcommand doctor" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand sensor; and not __fish_seen_subcommand_from read help" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand sensor; and not __fish_seen_subcommand_from read help" -f -a "read" -d 'Print the light, its unit and how long the reading took'
complete -c nightlight -n "__fish_nightlight_using_subcommand sensor; and not __fish_seen_subcommand_from read help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight -n "__fish_nightlight_using_subcommand sensor; and __fish_seen_subcommand_from read" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand sensor; and __fish_seen_subcommand_from read" -s w -l watch -d 'Again and again, every sensor.interval, until Ctrl-C'
complete -c nightlight -n "__fish_nightlight_using_subcommand sensor; and __fish_seen_subcommand_from read" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand sensor; and __fish_seen_subcommand_from help" -f -a "read" -d 'Print the light, its unit and how long the reading took'
complete -c nightlight -n "__fish_nightlight_using_subcommand sensor; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and not __fish_seen_subcommand_from on off blink help" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and not __fish_seen_subcommand_from on off blink help" -f -a "on" -d 'Switch it on'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and not __fish_seen_subcommand_from on off blink help" -f -a "off" -d 'Switch it off'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and not __fish_seen_subcommand_from on off blink help" -f -a "blink" -d 'Let it blink for five seconds, then leave it as it was'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and not __fish_seen_subcommand_from on off blink help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from on" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from on" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from off" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from off" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from blink" -s c -l config -d 'Configuration file; without it /etc/nightlight/nightlight.toml is read if it exists' -r -F
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from blink" -s h -l help -d 'Print help'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from help" -f -a "on" -d 'Switch it on'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from help" -f -a "off" -d 'Switch it off'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from help" -f -a "blink" -d 'Let it blink for five seconds, then leave it as it was'
complete -c nightlight -n "__fish_nightlight_using_subcommand led; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "run" -d 'Run the daemon until it is told to stop (SIGTERM, SIGINT)'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "demo" -d 'Show the daemon at work with a simulated sensor and LED'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "drill" -d 'Cut the running service\'s way to the broker for a while, watch it, and count what arrives'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "check" -d 'Check the configuration and say what the daemon would do with it'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "status" -d 'Show what the running daemon sees and does, and why the LED is as it is'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "backlog" -d 'Look into the backlog of a daemon that does not run'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "doctor" -d 'Look at this machine: sensor, LED, broker, clock, disk, service, and what to do about each'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "sensor" -d 'Read the configured sensor'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "led" -d 'Switch the configured LED by hand'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and not __fish_seen_subcommand_from run demo drill check status backlog doctor sensor led help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and __fish_seen_subcommand_from backlog" -f -a "stats" -d 'How much is in it, and of which runs'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and __fish_seen_subcommand_from backlog" -f -a "list" -d 'Its chunks and single records: run, first seq, last seq, count'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and __fish_seen_subcommand_from backlog" -f -a "export" -d 'Each record as a line of JSON, as it would be replayed, oldest first'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and __fish_seen_subcommand_from backlog" -f -a "verify" -d 'Read everything and compare it with the store\'s own account'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and __fish_seen_subcommand_from sensor" -f -a "read" -d 'Print the light, its unit and how long the reading took'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and __fish_seen_subcommand_from led" -f -a "on" -d 'Switch it on'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and __fish_seen_subcommand_from led" -f -a "off" -d 'Switch it off'
complete -c nightlight -n "__fish_nightlight_using_subcommand help; and __fish_seen_subcommand_from led" -f -a "blink" -d 'Let it blink for five seconds, then leave it as it was'
